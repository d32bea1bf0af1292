"""Lossless coders of integers, bytes and positions."""
