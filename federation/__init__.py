"""Learning together on secure sums.

    data, generate, amlsim, split    rows: loading, generating, dividing among banks
    job                              what a federation agrees on before it starts
    steps                            how a learner yields a vector and receives the sum
    bins, models/                    bin edges from dyadic counts; trees, logistic regression, small MLP
    metrics                          AUPRC, AUROC, recall at alert rates, calibration
    rooms                            drivers of secure sums: in one process, or over a channel
    simulate/, apps/                 the laptop's federation; Flower's server and client applications

Nothing here imports from `nodes`. Needs the `learn` extra.
"""
