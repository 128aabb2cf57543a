"""What the machine code of a kernel has to look like. Each gate yields a sentence for each thing that is wrong."""

import re
from dataclasses import dataclass, field

import warp_gates

# Registers of a multiprocessor, and the shared memory that a block can have.
REGISTERS = 65536
SHARED_BYTES = 232448
# A copy keeps the memory busy by many threads: this many registers let a multiprocessor hold 1536 of them.
COPY_REGISTERS = 40
# Rows that are normalised and rotated on their way: 1024 threads, each of which has this many rows under way.
EDGE_REGISTERS = 64
EDGE_LOADS = 4

# Values that a loop of flash may move to uniform registers besides the queries' descriptors: stages, parities.
DESCRIPTOR_SLACK = 4

# Tensor core instructions of Hopper: of 16-bit floats, of 8-bit integers, of 8-bit floats.
PRODUCTS = ("HGMMA", "IGMMA", "QGMMA")

MEMORY_OF_ONE_THREAD = ("LDL", "STL")
# Stores to shared memory of what the copy engine or the tensor cores read. (Shorter ones are the pin in flash.)
PAYLOAD = ("STSM", "STS.128")


@dataclass
class Kernel:
    """A kernel as compiled: its code, and what ptxas and the file say of it."""

    source: str
    name: str
    code: object
    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int
    threads: int
    failures: list = field(default_factory=list)
    hot_loops: list = field(default_factory=list)

    @property
    def family(self):
        """The folder that says which gates a kernel passes: flash/sm90, copy."""
        return "/".join(self.source.split("/")[:2 if self.source.startswith("flash/") else 1])


@dataclass
class Tile:
    """The arguments of `Tile` in kernels/flash/sm90/tile.h, from a kernel's name."""

    head_dim: int
    rows: int
    keys: int
    overlapped: bool
    kind: str

    # enum class Form { Simple, Overlapped }, and enum class Kind.
    PATTERN = re.compile(
        r"\bTile<[^<>]*?, (\d+), (\d+), (\d+), \((?:\w+::)*Form\)([01]), \((?:\w+::)*Kind\)([0-4])>"
    )
    KINDS = ("full", "banded", "carried", "irregular", "packed")

    @property
    def carried(self):
        return self.kind == "carried"

    @property
    def shared_bytes(self):
        """As in tile.h: the launch asks for it, so neither ptxas nor the machine code knows."""
        query, block = self.rows * self.head_dim * 2, self.keys * self.head_dim * 2
        least = 1024 + query + 2 * 2 * block + 256
        own_output = not self.carried and least + query <= SHARED_BYTES
        return least + (query if own_output else 0)

    @classmethod
    def of(cls, name):
        found = cls.PATTERN.search(name)
        if not found:
            return None
        return cls(int(found[1]), int(found[2]), int(found[3]), found[4] == "1", cls.KINDS[int(found[5])])


def judge(kernel):
    """Runs all gates for a kernel; what is wrong is added to its failures."""
    tile = Tile.of(kernel.name) or warp_gates.tile_of(kernel.name)
    if tile is not None:
        kernel.shared_bytes += tile.shared_bytes
    kernel.shared_bytes += sage_shared_bytes(kernel.name)
    gates = [private_memory, register_budget, shared_memory, store_fences]
    gates += {"flash/sm90": [flash_roles, flash_products, flash_order, flash_cover], "flash/sm80": warp_gates.GATES,
              "copy": [copy_width, copy_registers], "edge": [copy_width, edge_registers, edge_loads],
              "exchange": [exchange_fence], "sage": sage_gates(kernel)}.get(kernel.family, [])
    if "push_kernel" in kernel.name:
        gates.append(copy_width)
    if "peak_kernel" in kernel.name:
        gates.append(peak_products)
    kernel.hot_loops = kernel.code.innermost_loops(lambda each: each.is_(*PRODUCTS, "HMMA", "IMMA"))
    for gate in gates:
        kernel.failures.extend(dict.fromkeys(gate(kernel)))


def private_memory(kernel):
    """Everything a thread has must be in registers."""
    if kernel.spill_bytes:
        yield f"{kernel.spill_bytes} bytes of registers are spilled"
    if kernel.stack_bytes:
        yield f"a stack frame of {kernel.stack_bytes} bytes"
    found = kernel.code.count(*MEMORY_OF_ONE_THREAD)
    if found:
        yield f"{found} accesses to local memory (LDL, STL)"


def register_budget(kernel):
    """The launch must fit, and so must what setmaxnreg shares out afterwards."""
    if kernel.registers * kernel.threads > REGISTERS:
        yield f"{kernel.threads} threads of {kernel.registers} registers do not fit {REGISTERS}"
    released = {int(each.operands.split(",")[-1], 16) for each in changes(kernel.code, "DEALLOC")}
    acquired = {int(each.operands.split(",")[-1], 16) for each in changes(kernel.code, "TRY_ALLOC")}
    if len(released) == 1 and len(acquired) == 1:
        down, up = released.pop(), acquired.pop()
        shared_out = 128 * down + (kernel.threads - 128) * up
        # A warpgroup that asks for more than the launch took waits for ever.
        taken = kernel.threads * kernel.registers
        if shared_out > taken:
            yield f"setmaxnreg shares out {shared_out} registers, the launch takes {taken}"


def shared_memory(kernel):
    """A block must get what the launch asks for."""
    if kernel.shared_bytes > SHARED_BYTES:
        yield f"{kernel.shared_bytes} bytes of shared memory; a block can have {SHARED_BYTES}"


def store_fences(kernel):
    """Ordinary stores to shared memory are seen by the copy engine after a fence of the thread that stored, and then
    a barrier."""
    is_fence = lambda each: each.is_("FENCE.VIEW.ASYNC")
    is_payload = lambda each: each.is_(*PAYLOAD)
    for store in kernel.code.instructions:
        if store.is_("UTMASTG"):
            barriers = kernel.code.paths_meet(store.index, -1, lambda each: each.is_("BAR.SYNC"), is_payload)
            if barriers is None:
                yield "a TMA store without a barrier between it and the stores to shared memory"
            elif any(kernel.code.paths_meet(each, -1, is_fence, is_payload) is None for each in barriers):
                yield "a TMA store without fence.proxy.async between the stores to shared memory and the barrier"
        elif is_payload(store):
            tells = lambda each: each.is_("SYNCS.ARRIVE") or each.is_("UTMASTG", *PRODUCTS)
            if kernel.code.paths_meet(store.index, 1, is_fence, tells) is None:
                yield f"{store.opcode} to shared memory without fence.proxy.async before the next arrival"


def flash_roles(kernel):
    """One warpgroup gives registers away and drives the copy engine; the others take them and multiply."""
    code = kernel.code
    tile = Tile.of(kernel.name)
    yield from roles(kernel, ("HGMMA",), tile is not None and not tile.carried)


def roles(kernel, products, stores):
    code = kernel.code
    takers, givers = changes(code, "TRY_ALLOC"), changes(code, "DEALLOC")
    if len(takers) != 1 or len(givers) != 1:
        yield (f"{len(givers)} USETMAXREG that give registers and {len(takers)} that take them instead of one each: "
               "setmaxnreg is ignored, missing or doubled")
        return
    (taken,), (given,) = takers, givers
    for opcode, change, wanted in [("UTMALDG", given, True), *((product, taken, True) for product in products),
                                   ("UTMASTG", taken, stores)]:
        users = [each for each in code.instructions if each.is_(opcode)]
        if wanted and not users:
            yield f"no {opcode}"
        for each in users:
            if not code.dominates(change.index, each.index):
                yield f"{opcode} outside the warpgroups that it belongs to"
                break


def flash_products(kernel):
    """Each product is one uninterrupted row of tensor core instructions: ptxas runs them one by one, each with waits
    of its own, where it cannot prove that registers are left alone meanwhile."""
    tile = Tile.of(kernel.name)
    if tile is None:
        yield "the name holds no Tile<..>: what to expect of its products is unknown"
        return
    scores, output = tile.head_dim // 16, tile.keys // 16
    shapes = {True: f"64x{tile.keys}x16", False: f"64x{tile.head_dim}x16"}
    group = None
    groups = []
    for each in kernel.code.instructions:
        if each.is_("WARPGROUP.ARRIVE"):
            group = {True: 0, False: 0}
            groups.append(group)
        elif each.is_("HGMMA"):
            if each.opcode.split(".")[1] != shapes[is_score(each)]:
                yield f"{each.opcode} where {shapes[is_score(each)]} was expected"
                return
            if group is None:
                yield "HGMMA without WARPGROUP.ARRIVE before it"
                return
            group[is_score(each)] += 1
    odd = [g for g in groups if g[True] not in (0, scores) or g[False] not in (0, output) or not any(g.values())]
    if odd:
        yield (f"{len(odd)} of {len(groups)} products are broken up: expected {scores} HGMMA for scores and {output} "
               f"for output after each WARPGROUP.ARRIVE, found e.g. {odd[0][True]} and {odd[0][False]}")
    if not kernel.hot_loops:
        yield "no loop with tensor core instructions"
    for loop in kernel.hot_loops:
        counts = {kind: sum(each.is_("HGMMA") and is_score(each) == kind for each in loop) for kind in (True, False)}
        rounds = counts[True] // scores
        if not rounds or counts != {True: rounds * scores, False: rounds * output}:
            yield f"a loop with {counts[True]} and {counts[False]} HGMMA instead of {scores} and {output}"
            continue
        for opcode in ("WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR"):
            found = sum(each.is_(opcode) for each in loop)
            if found > 2 * rounds:
                yield f"{found} {opcode} in a loop of {rounds} blocks of keys: products run one by one"
        # Of the operands' descriptors only the queries' depends on the thread, by its warpgroup: two words for each
        # product. Where the compiler cannot tell that a warp is whole, every thread computes all of them.
        moved = sum(each.is_("R2UR") for each in loop)
        if moved > rounds * (2 * scores + DESCRIPTOR_SLACK):
            yield (f"{moved} R2UR in a loop: threads compute addresses that are the same for all of them; a "
                   "warp_sync() where their paths meet again, before the loop comes round, may be missing")


def flash_order(kernel):
    """Overlapped: both products are issued, the scores awaited, all exponentials taken, the output awaited.

    ptxas is free to move a wait up past arithmetic, and without the pin it moves the last wait above the exponentials,
    so that the tensor cores stand still. Nothing is tolerated: also the two exponentials that correct the output
    belong between the waits, since the sums that the pin stores depend on them.
    """
    tile = Tile.of(kernel.name)
    for loop in kernel.hot_loops:
        waits = [each for each in loop if is_wait(each)]
        if tile is None or not tile.overlapped or not waits:
            continue
        # The loop may begin anywhere in its round, so what the last wait was is known at its start.
        pending = pending_of(waits[-1])
        before, products, misplaced, broken = 0, {True: 0, False: 0}, 0, False
        for each in loop:
            if is_wait(each):
                broken |= pending_of(each) == pending
                pending = pending_of(each)
            elif each.is_("HGMMA"):
                broken |= pending != 0
                products[is_score(each)] += 1
            elif each.is_("MUFU.EX2"):
                before += 1
                misplaced += pending != 1
        if broken or {pending_of(each) for each in waits} != {0, 1}:
            order = " ".join(describe(each) for each in loop if is_wait(each) or each.is_("HGMMA"))
            yield f"a loop that does not wait for the scores and then for the output: {shorten(order)}"
        elif misplaced:
            yield f"{misplaced} of {before} exponentials are outside the waits for scores and output: no overlap"
        elif before < tile.keys // 2:
            yield f"a loop with {before} exponentials, fewer than its {tile.keys // 2} scores"


def flash_cover(kernel):
    """Along a cover there are two loops: one reads the mask pair by pair, and one knows nothing of it."""
    tile = Tile.of(kernel.name)
    if tile is None or tile.kind != "irregular":
        return
    reads = sorted(any(each.is_("LDG") for each in loop) for loop in kernel.hot_loops)
    if reads != [False, True]:
        yield f"{reads.count(False)} loops that read no mask and {reads.count(True)} that do, instead of one each"


SAGE_TILE = re.compile(r"\bsage::sm90::Tile<(\d+)>")
# Keys of a block, and what an instruction of 8 bits sums over.
SAGE_KEYS, SAGE_DEPTH = 128, 32


def sage_shared_bytes(name):
    """As in kernels/sage/sm90/tile.h."""
    found = SAGE_TILE.search(name)
    if found is None:
        return 0
    block = SAGE_KEYS * int(found[1])
    return 1024 + block + 2 * 4 * block + 2 * block + 16 * 256 + 256


def sage_gates(kernel):
    if "sage::sm80::" in kernel.name:
        return warp_gates.SAGE_GATES
    if "::forward<" in kernel.name:
        return [sage_roles, sage_products, sage_order]
    # All others round tensors, but for one that adds up a few numbers, and one that finds a few.
    if "::settle<" in kernel.name:
        return []
    return [load_width] if "::edge_maxima<" in kernel.name else [copy_width]


def sage_roles(kernel):
    """As in flash."""
    yield from roles(kernel, ("IGMMA", "QGMMA"), True)


def sage_products(kernel):
    """Each product is one uninterrupted row of instructions, of the shapes and the number that the tile asks for; so are
    the two loops: the one that looks at pairs one by one, and the hot one."""
    found = SAGE_TILE.search(kernel.name)
    if found is None:
        yield "the name holds no Tile<..>: what to expect of its products is unknown"
        return
    head_dim = int(found[1])
    wanted = {"IGMMA": (f"64x{SAGE_KEYS}x{SAGE_DEPTH}", head_dim // SAGE_DEPTH),
              "QGMMA": (f"64x{head_dim}x{SAGE_DEPTH}", SAGE_KEYS // SAGE_DEPTH)}
    groups = []
    for each in kernel.code.instructions:
        kind = next((opcode for opcode in wanted if each.is_(opcode)), None)
        if each.is_("WARPGROUP.ARRIVE"):
            groups.append([])
        elif each.is_("HGMMA"):
            yield "HGMMA: products of 16 bits"
        elif kind is not None:
            if each.opcode.split(".")[1] != wanted[kind][0]:
                yield f"{each.opcode} where {wanted[kind][0]} was expected"
            if not groups:
                yield f"{kind} without WARPGROUP.ARRIVE before it"
                return
            groups[-1].append(kind)
    odd = [g for g in groups if len(set(g)) != 1 or len(g) != wanted[g[0]][1]]
    if odd:
        yield f"{len(odd)} of {len(groups)} products are broken up, e.g. {shorten(' '.join(odd[0])) or 'nothing'}"
    if len(kernel.hot_loops) != 2:
        yield f"{len(kernel.hot_loops)} loops with tensor core instructions instead of two"
    for loop in kernel.hot_loops:
        counts = {opcode: sum(each.is_(opcode) for each in loop) for opcode in wanted}
        if counts != {opcode: count for opcode, (_, count) in wanted.items()}:
            yield f"a loop with {counts['IGMMA']} IGMMA and {counts['QGMMA']} QGMMA"
        for opcode, most in (("WARPGROUP.ARRIVE", 2), ("WARPGROUP.DEPBAR", 2)):
            found = sum(each.is_(opcode) for each in loop)
            if found > most:
                yield f"{found} {opcode} in a loop: products run one by one"
        moved = sum(each.is_("R2UR") for each in loop)
        if moved > 2 * counts["IGMMA"] + DESCRIPTOR_SLACK:
            yield f"{moved} R2UR in a loop: threads compute addresses that are the same for all of them"


def sage_order(kernel):
    """The hot loop issues both products, awaits the scores, takes all exponentials, awaits the output (as `flash_order`)."""
    orders = []
    for loop in kernel.hot_loops:
        events = [("wait", pending_of(each)) if is_wait(each) else (each.opcode.split(".")[0], None)
                  for each in loop if is_wait(each) or each.is_("IGMMA", "QGMMA", "MUFU.EX2")]
        names = [f"wait{pending}" if name == "wait" else "exp" if name == "MUFU" else name for name, pending in events]
        # The loop may begin anywhere in its round.
        start = next((at for at, name in enumerate(names) if name == "IGMMA" and names[at - 1] != "IGMMA"), 0)
        orders.append(shorten(" ".join(names[start:] + names[:start])))
    # A weight each for 64 x 128 scores in 128 threads, and two corrections.
    exponentials = f"{SAGE_KEYS // 2 + 2}xexp"
    if not any(re.fullmatch(rf"\d+xIGMMA \d+xQGMMA wait1 {exponentials} wait0", order) for order in orders):
        yield f"no loop that takes all exponentials between its waits for scores and output: {'; '.join(orders)}"


def peak_products(kernel):
    """What measures the tensor cores issues all its products before it waits."""
    loops = kernel.hot_loops
    if len(loops) != 1 or sum(each.is_("HGMMA") for each in loops[0]) != 16:
        yield "expected one loop of 16 HGMMA"
    elif sum(each.is_("WARPGROUP.DEPBAR") for each in loops[0]) != 1:
        yield "the loop waits for some products before it issues others"


def copy_width(kernel):
    """Sixteen bytes at a time."""
    yield from load_width(kernel)
    yield from width(kernel, "STG")


def load_width(kernel):
    """Sixteen bytes at a time, where little is written."""
    yield from width(kernel, "LDG")


def width(kernel, opcode):
    if not any(each.is_(opcode) and ".128" in each.opcode for each in kernel.code.instructions):
        yield f"no {opcode} of 16 bytes"


def copy_registers(kernel):
    """Registers for enough threads."""
    if kernel.registers > COPY_REGISTERS:
        yield f"{kernel.registers} registers; more than {COPY_REGISTERS} leave too few threads"


def edge_registers(kernel):
    """Registers for enough threads."""
    if kernel.registers > EDGE_REGISTERS:
        yield f"{kernel.registers} registers; more than {EDGE_REGISTERS} leave too few threads"


def edge_loads(kernel):
    """All of a thread's rows are on their way before the first one is summed up."""
    rows = [each.index for each in kernel.code.instructions if each.is_("LDG") and ".128.CONSTANT" in each.opcode]
    sums = [each.index for each in kernel.code.instructions if each.is_("SHFL")]
    if len(rows) != EDGE_LOADS:
        yield f"{len(rows)} loads of rows instead of {EDGE_LOADS}"
    elif not sums or rows[-1] > sums[0]:
        yield "a row is loaded after another one has been summed up"


def exchange_fence(kernel):
    """What a counter or a flag tells of has been stored for every GPU: behind a fence at system scope. Flags that stand
    for nothing but themselves have a fence behind them."""
    is_fence = lambda each: each.is_("MEMBAR") and each.opcode.endswith(".SYS")
    is_data = lambda each: each.is_("STG") and ".STRONG" not in each.opcode
    for each in kernel.code.instructions:
        if each.is_("ATOMG", "REDG") and kernel.code.paths_meet(each.index, -1, is_fence, is_data) is None:
            yield "a counter without a fence at system scope between it and the data"
        if each.is_("STG") and ".STRONG.SYS" in each.opcode:
            ends = lambda other: other.is_("EXIT", "NANOSLEEP")
            before = kernel.code.paths_meet(each.index, -1, is_fence, is_data)
            if before is None and kernel.code.paths_meet(each.index, 1, is_fence, ends) is None:
                yield "a flag with no fence at system scope on either side"


def changes(code, way):
    """The instructions that setmaxnreg became."""
    return [each for each in code.instructions if each.is_(f"USETMAXREG.{way}")]


def is_score(product):
    """Scores take both operands from shared memory, by one descriptor; the output takes one from registers."""
    return product.operands.split(",")[1].startswith("gdesc")


def is_wait(instruction):
    return instruction.is_("WARPGROUP.DEPBAR")


def pending_of(wait):
    """How many groups of products a wait leaves unfinished."""
    return int(wait.operands.split(",")[-1], 16)


def describe(instruction):
    return f"wait{pending_of(instruction)}" if is_wait(instruction) else "QK" if is_score(instruction) else "PV"


def shorten(words):
    return re.sub(r"\b(\w+)(?: \1\b)+", lambda found: f"{len(found[0].split())}x{found[1]}", words)
