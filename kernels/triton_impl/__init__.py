"""The Triton backend. Read ``launch.py`` for what runs when, then ``forward.py``, whose loops the others repeat.

======================  ==============================================================================================
``launch.py``           the host: which kernels run, in which order, over what
``problem.py``          one call as data: the arguments that its kernels share, and grids
``descriptors.py``      which tensors the copy engine can address, and how
``steps.py``            a launch, and the compiled program that it takes
``tuning.py``           launch configurations: ``configurations.csv`` by architecture, precision, head_dim and problem, and
                        ``configurations_triton_3_6.csv``, what that version needs in its place
``primitives.py``       what kernels share: tiles, loads, the mask rule, the softmax update, dropout
``forward.py``          windows with global keys
``global_rows.py``      rows of global tokens, split over the keys, and their combination
``backward_*.py``       gradients: a row's constants (``prepare``), queries, keys and values, everything global
``fused_dense.py``      windows that hold the whole sequence, by PyTorch's own kernels
``absorbed_rows.py``    rows as wide as a model, whose products are left to cuBLAS; ``dropout_mask.py``: their dropout
======================  ==============================================================================================

A launch hands a kernel every pointer and stride by itself; the first lines of each kernel gather them into ``HeadView``,
``Strand`` and ``Dropout`` (``primitives.py``), which its helpers take. Names in the signatures; ``X`` is query, key, value, out
or one of their gradients, a tensor (batch, heads, tokens, head_dim):

======================  ==============================================================================================
``X_ptr``               its first element; ``X_stride_b``, ``_h``, ``_n``, ``_d``: strides of the axes, in elements
``X_tiles``             a descriptor of the tensor for the copy engine, None without DESCRIPTORS
``key_flags_ptr``       (batch, seq_len) int16, 0 where a token is padding; with HAS_MASK
``span_ptr``            (batch, 3) int32: first real token, one past the last, how many between are masked; with HAS_MASK
``global_index_ptr``    (batch, ``num_globals``) positions of global tokens; ``global_count_ptr`` (batch): how many are in use
``first_slot``          the place among these of the first that a launch of ``dropout_mask.py`` serves, one of ``rows``; it
                        writes ``keep_ptr``
``seed_ptr``            dropout's seed; ``threshold``: of 256, how many bytes are dropped; ``rescale``: the factor on kept
                        probabilities, and ``keep_share`` its inverse
``delta_ptr``           (batch, heads, row_stride), and ``lse_log2_ptr``: see ``backward_prepare.py``; ``row_stride`` is
                        seq_len rounded up to 4, or num_globals for global rows
``partial_X_ptr``       sums over one of ``splits`` parts of the sequence, still to be added up
``heads``, ``group``    query heads, and how many of them share a key head
``first_head``          this launch's first of ``run_heads`` neighbouring heads, which have one ``dilation``
``left``, ``right``     the window, in steps of a strand (``primitives.py``)
``scale_log2``          ``|scale| * log2(e)``; ``query_sign``: of the scale, moved into the query with FLIP_QUERY
``X_scale``             what a finished gradient is multiplied by: dropout's factor, and for query and key the scale of scores
``BLOCK_M``, ``_N``     queries and keys of a tile; ``BLOCK_G`` global tokens; ``BLOCK_D`` channels, HEAD_DIM padded
``HOLD_KEPT``           how dk and dv apply dropout, and ``QUERY_ROWS``: what their scores' rows are (``backward_key_value.py``)
``NEED_KEY``, ...       which gradients to compute; ``parts``: how many partial sums a sum has; ``SCATTER``: where it goes
``GATHER``              whether rows are those of global tokens, or with ``SKIP_GLOBALS`` all others (``backward_prepare.py``)
``PRECISION``, ``ACC``  of products (Triton's ``input_precision``), and the type of sums
======================  ==============================================================================================

Inside, ``begin`` is where the first tile starts, ``low`` and ``high`` bound what a row meets, a ``slot`` is a place in the list
of global tokens, ``alive`` rows are loaded and count, and CHECK says what a tile has to look at
(LOW, CLEAN, HIGH, EDGE, HOLES).
"""
