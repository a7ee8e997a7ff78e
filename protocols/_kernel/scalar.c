/* The batch functions on one lane of portable C. */
#include "lanes_scalar.h"
#define KERNEL kernel_scalar
#include "batch.h"
