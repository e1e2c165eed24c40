"""The commands by theme; each module offers an `add(app)`. Work is done elsewhere: here are names, flags and help."""
