"""The official names and signatures of existing codebases: one import line replaces theirs."""
