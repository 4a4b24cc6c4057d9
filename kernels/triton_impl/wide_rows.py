rows_forward = rows_backward = None
