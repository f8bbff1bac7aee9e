/* The sum of a buffer, read once by all threads: each goes through its share in eight streams far apart, since the CPU
fetches ahead in each of them. */
#include <stdint.h>

#define STREAMS 8
typedef float line __attribute__((vector_size(64), aligned(4)));

float sum(const float *numbers, int64_t count, int threads) {
    float all = 0;
    const int64_t lines = count / 16 / STREAMS; /* of a stream */
#pragma omp parallel num_threads(threads) reduction(+ : all)
    {
        line added[STREAMS] = {{0}};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < lines; i++)
            for (int s = 0; s < STREAMS; s++) added[s] += ((const line *)numbers)[s * lines + i];
        for (int s = 0; s < STREAMS; s++)
            for (int lane = 0; lane < 16; lane++) all += added[s][lane];
    }
    return all;
}
