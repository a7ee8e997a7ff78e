"""An institution's own people: who they are, what each may do, and what none of them does alone."""
