// What attention on tensor cores and its launches share.
#pragma once

#include "types.h"

static constexpr int TILE = 64;   // rows of a tile, keys of a block
static constexpr int BLOCK = 32;  // keys or queries of a block; a tile of shared memory holds two

// Tokens, rows and keys are below this: they fit an int with a block to spare.
static constexpr i64 LIMIT = 0x7fffff00;

// Bytes behind the tiles of keys and values and their queries in the shared memory of a block: two
// blocks of statistics and the segment.
static constexpr int KEY_TILE_TABLES = 2 * BLOCK * 16 + 40;
