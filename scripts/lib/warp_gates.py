"""What the machine code of kernels/flash/sm80 has to look like: products of warps, copies of threads."""

import re
from dataclasses import dataclass

REGISTERS = 65536
# What the cards with the least have: of a block, and of a multiprocessor, where each block takes another kilobyte.
BLOCK_BYTES, MULTIPROCESSOR_BYTES, RESERVED_BYTES = 101376, 102400, 1024


@dataclass
class WarpTile:
    """The arguments of `Tile` in kernels/flash/sm80/tile.h, from a kernel's name."""

    head_dim: int
    warps: int
    strips: int
    keys: int

    PATTERN = re.compile(r"\bflash::sm80::Tile<[^<>]*?, (\d+), (\d+), (\d+), (\d+)>")

    @property
    def shared_bytes(self):
        """As in tile.h: the launch asks for it, so neither ptxas nor the machine code knows."""
        rows = 16 * self.strips * self.warps
        return 128 + 2 * self.head_dim * (rows + 2 * self.keys)

    @property
    def blocks(self):
        """As in tile.h: what a multiprocessor is to have at a time."""
        return 2 if self.warps == 4 and self.head_dim <= 128 else 1

    @classmethod
    def of(cls, name):
        found = cls.PATTERN.search(name)
        return cls(*map(int, found.groups())) if found else None


def tile_of(name):
    return WarpTile.of(name) or SageTile.of(name)


def occupancy(kernel):
    """A multiprocessor must find room for as many blocks as are meant."""
    tile = tile_of(kernel.name)
    if tile is None:
        yield "the name holds no sm80::Tile<..>: what to expect is unknown"
        return
    taken = (kernel.registers + 7) // 8 * 8 * kernel.threads * tile.blocks
    if taken > REGISTERS:
        yield f"{tile.blocks} blocks of {kernel.threads} threads of {kernel.registers} registers do not fit {REGISTERS}"
    if kernel.shared_bytes > BLOCK_BYTES:
        yield f"{kernel.shared_bytes} bytes of shared memory; some cards' blocks can have {BLOCK_BYTES}"
    if (kernel.shared_bytes + RESERVED_BYTES) * tile.blocks > MULTIPROCESSOR_BYTES:
        yield f"{tile.blocks} blocks of {kernel.shared_bytes} bytes of shared memory do not fit {MULTIPROCESSOR_BYTES}"


def hot_loop(kernel):
    """The loop over blocks of keys that everybody attends, the shortest: all its products and no mask."""
    tile = WarpTile.of(kernel.name)
    if tile is None:
        return
    if not kernel.hot_loops:
        yield "no loop with tensor core instructions"
        return
    loop = min(kernel.hot_loops, key=len)
    copies = [each for each in loop if each.is_("LDGSTS")]
    count = lambda *opcodes: sum(each.is_(*opcodes) for each in loop)
    depths, columns, keys = tile.head_dim // 16, tile.head_dim // 16, tile.keys // 16
    pieces = tile.keys * tile.head_dim * 2 // 16 // (32 * tile.warps)
    for what, found, expected in [
        ("HMMA.16816", count("HMMA.16816"), 4 * tile.strips * keys * depths),
        ("LDSM", count("LDSM"), depths * (tile.strips + keys) + keys * columns),
        ("transposing LDSM", sum(each.is_("LDSM") and ".MT88" in each.opcode for each in loop), keys * columns),
        ("LDGSTS of 16 bytes", sum(each.is_("LDGSTS.E.BYPASS") and ".128" in each.opcode for each in copies), 2 * pieces),
        ("LDGDEPBAR", count("LDGDEPBAR"), 2),
        ("DEPBAR", count("DEPBAR"), 2),
        ("BAR.SYNC", count("BAR.SYNC"), 2),
        ("MUFU.EX2", count("MUFU.EX2"), tile.strips * (tile.keys // 2 + 2)),
        ("global loads", count("LDG"), 0),
    ]:
        if found != expected:
            yield f"a hot loop with {found} {what} instead of {expected}"
    # Out of the loop, and round again.
    if count("BRA", "BRX", "BSSY", "CALL") > 2:
        yield f"{count('BRA', 'BRX', 'BSSY', 'CALL')} branches in the hot loop"
    if any(".ZFILL" in each.opcode for each in copies):
        yield "copies in the hot loop look at the key length"
    # The loop's own end; and for each row whether it has met anything yet.
    if count("ISETP") > 2 or count("FSEL") > 2 * tile.strips:
        yield f"{count('ISETP')} ISETP and {count('FSEL')} FSEL in the hot loop: it has masks"


def output_width(kernel):
    """Rows are stored sixteen bytes at a time, and queries copied so."""
    tile = tile_of(kernel.name)
    stores = sum(each.is_("STG") and ".128" in each.opcode for each in kernel.code.instructions)
    if tile is not None and stores < 2 * tile.strips * tile.head_dim // 32:
        yield f"{stores} stores of 16 bytes instead of {2 * tile.strips * tile.head_dim // 32}"


@dataclass
class SageTile(WarpTile):
    """The arguments of `Tile` in kernels/sage/sm80/tile.h."""

    PATTERN = re.compile(r"\bsage::sm80::Tile<[^<>]*?, (\d+), (\d+), (\d+), (\d+)>")

    @property
    def shared_bytes(self):
        """As in tile.h: queries and keys have a byte for each element, values two."""
        return 128 + self.head_dim * (16 * self.strips * self.warps + 3 * self.keys)


def sage_hot_loop(kernel):
    """As `hot_loop`: scores by products of integers, without conversions; one load, of the keys' scale."""
    tile = SageTile.of(kernel.name)
    if tile is None or not kernel.hot_loops:
        yield "no sage::sm80::Tile<..> in the name, or no loop with tensor core instructions"
        return
    loop = min(kernel.hot_loops, key=len)
    count = lambda *opcodes: sum(each.is_(*opcodes) for each in loop)
    keys, columns, depths = tile.keys // 16, tile.head_dim // 16, tile.head_dim // 32
    pieces = tile.keys * tile.head_dim * 3 // 16 // (32 * tile.warps)
    for what, found, expected in [
        ("IMMA.16832", count("IMMA.16832"), 2 * tile.strips * keys * depths),
        ("HMMA.16816", count("HMMA.16816"), 2 * tile.strips * keys * columns),
        ("LDSM", count("LDSM"), depths * (tile.strips + keys) + keys * columns),
        ("LDGSTS of 16 bytes", sum(each.is_("LDGSTS.E.BYPASS") and ".128" in each.opcode for each in loop), pieces),
        ("BAR.SYNC", count("BAR.SYNC"), 2),
        ("MUFU.EX2", count("MUFU.EX2"), tile.strips * (tile.keys // 2 + 2)),
        ("global loads", count("LDG"), 1),
        ("conversions", count("I2F", "I2FP"), 0),
    ]:
        if found != expected:
            yield f"a hot loop with {found} {what} instead of {expected}"
    if count("BRA", "BRX", "BSSY", "CALL") > 2 or count("ISETP") > 2 or count("FSEL") > 2 * tile.strips:
        yield "branches or masks in the hot loop"


GATES = [occupancy, hot_loop, output_width]
SAGE_GATES = [occupancy, sage_hot_loop, output_width]
