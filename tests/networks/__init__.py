"""Random networks: a description as plain data, the network it stands for, and what must hold for every one of them."""
