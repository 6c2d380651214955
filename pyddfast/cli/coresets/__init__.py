"""The commands of coresets, a module a kind of method."""
