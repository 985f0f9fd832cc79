"""Composing and checking what was typed, without torch, and building what it names."""
