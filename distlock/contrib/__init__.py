"""For frameworks, each in a module of its own, which imports the framework."""
