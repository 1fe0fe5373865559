/* omp.h: OpenMP for a program compiled without it. */
#ifndef LR_FUZZ_OMP_H
#define LR_FUZZ_OMP_H

static inline void omp_set_num_threads(int n)
{
    (void)n;
}
static inline void omp_set_dynamic(int n)
{
    (void)n;
}
static inline void omp_set_max_active_levels(int n)
{
    (void)n;
}
static inline int omp_get_thread_num(void)
{
    return 0;
}
static inline int omp_get_thread_limit(void)
{
    return 1;
}
static inline int omp_get_max_active_levels(void)
{
    return 1;
}

#endif
