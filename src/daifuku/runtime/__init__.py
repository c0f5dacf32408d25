"""What is done to the networks from outside: reading, placing and, later, speeding them up."""
