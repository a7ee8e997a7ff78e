def run(folder, seed, entries): return True
