"""Times FAISS's IndexBinaryFlat for `sconce-bench hamming --faiss PYTHON`.

Arguments: file of codes, file of queries (packed, lowest bit first), bits, threads.
Every line read is a k and a file ("-" for none): answers with the seconds of one search, and writes its distances (i4, rows of k)
and then its neighbours (i8) to the file.
"""
import sys
import time

import faiss
import numpy as np

codes, queries, bits, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
faiss.omp_set_num_threads(threads)
index = faiss.IndexBinaryFlat(bits)
index.add(np.fromfile(codes, np.uint8).reshape(-1, bits // 8))
queries = np.fromfile(queries, np.uint8).reshape(-1, bits // 8)
print(faiss.__version__, flush=True)
for line in sys.stdin:
    k, path = line.split(maxsplit=1)
    start = time.perf_counter()
    distances, neighbors = index.search(queries, int(k))
    seconds = time.perf_counter() - start
    if path.strip() != "-":
        with open(path.strip(), "wb") as file:
            file.write(distances.astype("<i4").tobytes())
            file.write(neighbors.astype("<i8").tobytes())
    print(seconds, flush=True)
