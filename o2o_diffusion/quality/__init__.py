"""Quality measures of generated transitions, against held-out real rows of the same label.

Read every number next to two others: the floor (the same measure of real rows against other real rows) and the ceiling
(the same measure of real rows of the other label). `comparison.compare` and `comparison.evaluate` compute all three.
"""
