/* omp.h: OpenMP for a program compiled without it. */
#ifndef LR_FUZZ_OMP_H
#define LR_FUZZ_OMP_H

static inline void omp_set_num_threads(int n)
{
    (void)n;
}
static inline int omp_get_thread_num(void)
{
    return 0;
}

#endif
