"""What a schedule looks like and costs: its proof, its pictures and predictions. Only the proof needs torch."""
