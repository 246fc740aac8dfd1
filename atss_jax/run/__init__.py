"""What people run: the recipe as a whole, and every mode of the command line."""
