"""The paper: pure functions of tensors."""
