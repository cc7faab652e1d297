"""What federated models are compared with: matrix factorisation of ratings that lie in one place.

Centralised training sees every rating of every user, which Federated Reconstruction never does. `central_sgd` is the
paper's centralised model; `central_als` is how such models are solved best.
"""
