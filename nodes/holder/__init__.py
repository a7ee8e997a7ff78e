"""The holder's side: own lists, their key epochs and sealed batches."""
