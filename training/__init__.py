"""Trains the three demonstration models of Modelyard on a CPU, from the corpus in this folder."""
