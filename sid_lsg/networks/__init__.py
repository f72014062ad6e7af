"""What is done to a network, whatever it computes."""
