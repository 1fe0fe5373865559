/* constants.h: numbers that the kernels of all backends share, so that those compute the same functions. Macros: they stand in C,
 * in CUDA and in vector code. */
#ifndef LR_KERNELS_CONSTANTS_H
#define LR_KERNELS_CONSTANTS_H

#define LR_LOG2_E 1.44269504f
#define LR_LN_2 0.693147181f

/* ---- the normal distribution ------------------------------------------------------------------------------------------- */
/* Its smaller tail at x is e^(-x^2/2) t P(t) with t = 1 / (1 + LR_NORMAL_SCALE |x|). P is a polynomial of degree 7 by Chebyshev
 * interpolation: the absolute error is 4e-8, and the tail keeps its relative accuracy. P(t) by Horner's rule:
 *     p = LR_NORMAL_LEADING;  then for each c of LR_NORMAL_REST:  p = p * t + c; */
#define LR_NORMAL_SCALE 0.2969848481f
#define LR_NORMAL_LEADING 3.728202251e-2f
#define LR_NORMAL_REST(STEP)                                                                                           \
    STEP(-1.690584422e-1f)                                                                                             \
    STEP(2.355241365e-1f)                                                                                              \
    STEP(-7.902113896e-2f)                                                                                             \
    STEP(1.415098963e-1f)                                                                                              \
    STEP(9.525001349e-2f)                                                                                              \
    STEP(1.201222214e-1f)                                                                                              \
    STEP(1.183913094e-1f)
#define LR_NORMAL_DENSITY 0.398942280f /* 1 / sqrt(2 pi): the density at 0 */

/* ---- GELU by tanh ------------------------------------------------------------------------------------------------------ */
/* It is x sigmoid(2u) with 2u = LR_GELU_INNER x (1 + LR_GELU_CUBIC x^2), so that tanh itself is not needed. The slope of 2u is
 * LR_GELU_INNER + LR_GELU_SLOPE x^2. */
#define LR_GELU_INNER 1.5957691216f /* 2 sqrt(2 / pi) */
#define LR_GELU_CUBIC 0.044715f
#define LR_GELU_SLOPE 0.2140667f /* 3 LR_GELU_INNER LR_GELU_CUBIC */

#endif
