"""Learning at a node. Imported only where `[learn]` is configured: it needs the `learn` extra.

desk        jobs: approved, under way, ended; cohorts; what the gate says (in `lianfang serve`)
service     the desk's gRPC faces: to the coordinator's members, and to this node's learning process
seats       this institution's part in a job: its rows, keys and channel (in `lianfang learn serve`)
flower      the one module that knows Flower's inside: our own executor (pinned to 1.41)
processes   SuperLink and SuperNode as child processes
pipeline    what a job computes and leaves behind: model, model card, statistics
"""
