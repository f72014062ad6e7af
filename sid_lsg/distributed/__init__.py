"""Several processes: their launch, and networks sharded over them."""
