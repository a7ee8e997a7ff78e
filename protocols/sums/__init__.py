"""SecureSum: each member contributes an integer vector, all members learn the sum, the coordinator learns nothing.

The rules and the argument: docs/protocols/secure-sum.md. Sans-I/O: `Member` and `Coordinator` take messages and
return messages; who moves the bytes is somebody else's business.

    members.Member          one member's side of one job
    coordinator.Coordinator the coordinator's side of one job
    modular                 arithmetic modulo the plaintext modulus, masks, check values
    cipher                  BFV under the job key (TenSEAL)
    cohorts                 which cohorts a member may take part in over the same rows
"""
