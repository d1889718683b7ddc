"""Pictures: the only place where their bytes are decoded, the processes in which that happens, and what is wrong with them."""
