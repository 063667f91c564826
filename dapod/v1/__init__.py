"""Generated from proto/dapod/v1 by `make proto`; never edited by hand."""
