"""A pipeline whose work can be watched from outside its container."""
