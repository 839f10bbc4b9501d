"""Finds the layers to which a trained network's errors point, and retrains only those.

The modules in reading order; imports go up the list.

    layer_groups  a model's layers in groups: stem, blocks, head
    attribution   the model's errors, and a score of each group for them
    repair        retrains some groups while all others are frozen, and runs controls
    agreement     whether several trainings name the same groups

Source: Pasichnyk, "Beta-scheduling: momentum from critical damping as a diagnostic and correction tool", 2026,
https://arxiv.org/abs/2603.28921, for gradients on misclassified images by layer group, and for retraining the groups
that they name.  The other scores, the controls and the statistics are ours.
"""
