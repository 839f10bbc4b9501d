"""Which layers a trained network fails in, and retraining only those.

In reading order; imports go up the list.

    groups       a model's layers in groups: stem, blocks, head
    attribution  its errors, and how much each group would have to do with their loss
    repair       retraining some groups while all else is frozen, beside its controls
    agreement    whether several trainings name the same groups

Pasichnyk, "Beta-scheduling: momentum from critical damping as a diagnostic and correction tool", 2026,
https://arxiv.org/abs/2603.28921, has gradients on misclassified images by layer group, and retraining the groups that
they name; the other scores, the controls and the statistics are ours.
"""
