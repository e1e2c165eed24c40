"""The heavy primitives, one folder each: a plain reference that is the law, and faster twins that are its guests."""
