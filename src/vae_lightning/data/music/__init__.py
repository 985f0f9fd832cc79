"""Melodies and chorales: read from scores, laid on a grid of 16ths, written as MIDI and sound."""
