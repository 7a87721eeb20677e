"""dualform: does this model learn from its prompt as it would from gradients, and which should you use?"""
