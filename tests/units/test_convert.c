/* test_convert.c: conversions between 16-bit and 32-bit floating point, against their definition in doubles: every 16-bit value,
 * and f32 values at and around every place where rounding changes. */
#include "core/tensor.h"
#include "lr_test.h"

typedef struct format {
    int dtype, exponent_bits, fraction_bits;
} format;
static const format HALVES[] = {{LR_BF16, 8, 7}, {LR_F16, 5, 10}};

/* The value of the bits. */
static double value_of(const format *f, uint16_t bits)
{
    const int bias = (1 << (f->exponent_bits - 1)) - 1, top = (1 << f->exponent_bits) - 1;
    const int exponent = bits >> f->fraction_bits & top, fraction = bits & ((1 << f->fraction_bits) - 1);
    double x;
    if (exponent == top)
        x = fraction != 0 ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        x = ldexp(fraction, 1 - bias - f->fraction_bits);
    else
        x = ldexp(fraction + (1 << f->fraction_bits), exponent - bias - f->fraction_bits);
    return bits & 0x8000 ? -x : x;
}

TEST(every_half_is_what_its_bits_mean)
{
    uint16_t *bits = lr_alloc(65536 * sizeof *bits);
    float *floats = lr_alloc(65536 * sizeof *floats);
    CHECK(bits != NULL && floats != NULL);
    for (int i = 0; i < 65536; i++)
        bits[i] = (uint16_t)i;
    for (size_t k = 0; k < LR_COUNT_OF(HALVES); k++) {
        CHECK_INT(lr_convert(floats, LR_F32, bits, HALVES[k].dtype, 65536), LR_OK);
        for (int i = 0; i < 65536; i++) {
            const double x = value_of(&HALVES[k], (uint16_t)i);
            CHECK(isnan(x) ? isnan(floats[i]) : (double)floats[i] == x && !signbit(floats[i]) == !signbit(x));
        }
        uint16_t *back = lr_alloc(65536 * sizeof *back);
        CHECK(back != NULL);
        CHECK_INT(lr_convert(back, HALVES[k].dtype, floats, LR_F32, 65536), LR_OK);
        for (int i = 0; i < 65536; i++)
            CHECK(isnan(floats[i]) ? isnan(value_of(&HALVES[k], back[i])) : back[i] == i);
        lr_free(back);
    }
    lr_free(floats);
    lr_free(bits);
}

/* x between the neighbours low and low + 1 (bits of the same sign) is rounded to the nearer one, at a tie to the even one. Above
 * the largest half, one more is assumed to follow. */
static uint16_t rounded(const format *f, uint16_t low, double x)
{
    const double a = fabs(value_of(f, low)), b = fabs(value_of(f, (uint16_t)(low + 1)));
    const double beyond = isinf(b) ? 2 * a - fabs(value_of(f, (uint16_t)(low - 1))) : b, middle = (a + beyond) / 2;
    if (fabs(x) != middle)
        return fabs(x) < middle ? low : (uint16_t)(low + 1);
    return low & 1 ? (uint16_t)(low + 1) : low;
}

/* Between each two neighbours: just above the lower, around the middle, just below the upper. */
TEST(f32_is_rounded_to_the_nearest_even)
{
    for (size_t k = 0; k < LR_COUNT_OF(HALVES); k++) {
        const format *f = &HALVES[k];
        const uint16_t infinity = (uint16_t)(((1 << f->exponent_bits) - 1) << f->fraction_bits);
        for (uint32_t low = 0; low < 0x10000; low++) {
            if ((low & 0x7fff) >= infinity)
                continue;
            const double a = value_of(f, (uint16_t)low), b = value_of(f, (uint16_t)(low + 1));
            const double step = isinf(b) ? a - value_of(f, (uint16_t)(low - 1)) : b - a;
            const float middle = (float)(a + step / 2), end = (float)(a + step);
            const float tries[] = {(float)a, nextafterf((float)a, end), nextafterf(middle, (float)a),
                                   middle,   nextafterf(middle, end),   nextafterf(end, (float)a)};
            uint16_t got[LR_COUNT_OF(tries)];
            CHECK_INT(lr_convert(got, f->dtype, tries, LR_F32, LR_COUNT_OF(tries)), LR_OK);
            for (size_t i = 0; i < LR_COUNT_OF(tries); i++) {
                const uint16_t expected = rounded(f, (uint16_t)low, tries[i]);
                if (got[i] != expected)
                    LR_TEST_FAIL("dtype %d: %a became %04x, expected %04x", f->dtype, (double)tries[i], got[i],
                                 expected);
            }
        }
    }
}

TEST(one_half_to_the_other_goes_by_f32)
{
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t bits = (uint16_t)i;
        uint16_t got;
        CHECK_INT(lr_convert(&got, LR_BF16, &bits, LR_F16, 1), LR_OK);
        CHECK_INT(got, lr_f32_to_bf16(lr_f16_to_f32(bits)));
        CHECK_INT(lr_convert(&got, LR_F16, &bits, LR_BF16, 1), LR_OK);
        CHECK_INT(got, lr_f32_to_f16(lr_bf16_to_f32(bits)));
    }
}

TEST(integers_are_only_copied)
{
    const int32_t from[] = {1, -2, 3};
    int32_t to[3] = {0};
    float f[3];
    CHECK_INT(lr_convert(to, LR_I32, from, LR_I32, 3), LR_OK);
    CHECK_INT(memcmp(from, to, sizeof to), 0);
    CHECK_INT(lr_convert(f, LR_F32, from, LR_I32, 3), LR_EDTYPE);
    CHECK_STR(lr_last_error(), "cannot convert i32 to f32");
}

TEST_MAIN()
