"""Modules: layers, input codes and losses."""
