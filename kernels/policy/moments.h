// How a standard deviation is kept from 0.
#pragma once

#include "types.h"

// How a small number guards a division by a standard deviation: `ops::EpsForm`.
enum EpsForm : i32 { EPS_FORM_ADD_TO_STD, EPS_FORM_ADD_TO_VARIANCE, EPS_FORM_FLOOR_VARIANCE };
