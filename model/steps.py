"""One step of decoding: the language model reads new tokens and gives the logits of the next ones.

`Steps` is the plain form. `FixedSteps` gives every step the same shape, so that a GPU can record a step once (as a CUDA
graph) and replay it: a step of a 7 B model is a thousand kernels of a few microseconds each, and launching them takes
longer than running them. A recording refers to addresses, not values. Therefore all inputs of a step are in permanent
buffers: the whole cache, a mask of its stored tokens, positions, tokens. On a CPU the same step runs unrecorded.

Shapes: B rows, T tokens of a step in each row (the beams), P prompt tokens, V vocabulary, L tokens the cache has room
for, S of them stored. The cache holds the prompt, then T tokens for each step.
"""

import weakref

import torch

from model.mistral import Cache

ROUND = 64                             # L is a multiple of it: fewer shapes, and memory as the GPU likes it
RECORDINGS = 8                         # shapes that are kept for one model; each has a cache of its own


class Steps:
    """Encodes the prompt; `logits` (B, V) are those after the prompt. A call gives the logits after further tokens."""

    def __init__(self, mistral, ids, embeds, width, steps):
        embeds = mistral.embed(ids) if embeds is None else embeds
        B, self.prompt = embeds.shape[:2]
        self.mistral, self.width, self.done, self.window = mistral, width, 0, mistral.config.sliding_window
        self.cache = self.room(B, self.prompt + width * steps)
        self.logits = mistral.logits(mistral.hidden(embeds=embeds, cache=self.cache)[:, -1]).float()

    @property
    def look_every(self):
        """Steps between checks for finished rows; each check makes the host wait for the GPU, which is then idle."""
        return 1 if self.logits.device.type == "cpu" else 4

    def room(self, batch, length):
        return self.mistral.new_cache(batch, length)

    def __call__(self, tokens, reads=None):
        """tokens (B, T), reads (B, T, S + T): which stored tokens each of them reads, None for all → (B, T, V)."""
        now = self.prompt + self.done
        self.done += 1
        if reads is None:
            return self.mistral.logits(self.mistral.hidden(ids=tokens, cache=self.cache)).float()
        mask = reads
        if self.window is not None:
            mask = reads & (self.positions(reads.shape[2], tokens.device) > now - self.window)
        positions = torch.full(tokens.shape[1:], now, device=tokens.device)
        hidden = self.mistral.hidden(ids=tokens, cache=self.cache, positions=positions, mask=mask)
        return self.mistral.logits(hidden).float()

    def positions(self, length, device):
        """The position in its text of each stored token: the tokens of a step, one for each beam, share theirs."""
        stored = torch.arange(length, device=device)
        return torch.where(stored < self.prompt, stored, self.prompt + (stored - self.prompt) // self.width)

    def keep(self, rows):
        """Keeps only the rows of the batch where rows (B,) is true. Returns whether the other rows were dropped."""
        self.cache.keep(rows)
        return True


class FixedSteps(Steps):
    """`Steps` in one fixed shape, recorded on a GPU. No row is dropped before all are finished. Not thread-safe."""

    def room(self, batch, length):
        if torch.is_autocast_enabled(self.mistral.model["norm"].weight.device.type):
            raise ValueError("capture=True records the weights' own type: not under autocast")
        self.buffers = buffers_for(self.mistral, batch, self.width, -(-length // ROUND) * ROUND)
        self.buffers.start(self.positions)
        return self.buffers.cache

    def __call__(self, tokens, reads=None):
        now, stored = self.prompt + self.done, self.prompt + self.width * self.done
        self.done += 1
        return self.buffers.step(self.mistral, tokens, reads, now, stored)

    def keep(self, rows):
        return False


class WholeCache(Cache):
    """A cache read as a whole. slots: the places of the new tokens, tensor (T,); None while the prompt is stored."""

    slots = None

    def append(self, layer, k, v):
        if self.slots is None:
            return super().append(layer, k, v)
        self.keys[layer].index_copy_(2, self.slots, k)
        self.values[layer].index_copy_(2, self.slots, v)
        return self.keys[layer], self.values[layer]


class Buffers:
    """The inputs and outputs of steps of one shape, at fixed addresses, and the recording once there is one."""

    def __init__(self, mistral, batch, width, length):
        weight = mistral.model["norm"].weight
        device = weight.device
        self.cache = WholeCache(mistral.config, batch, length, weight.dtype, device)
        # A masked value is multiplied by 0, but uninitialised memory may hold NaN, and 0 · NaN is NaN.
        self.cache.values.zero_()
        self.cache.keys.zero_()
        self.tokens = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.slots = torch.zeros(width, dtype=torch.long, device=device)
        self.now = torch.zeros(width, dtype=torch.long, device=device)                 # position in the text
        self.positions = torch.zeros(length, dtype=torch.long, device=device)
        self.reads = torch.zeros(batch, width, length, dtype=torch.bool, device=device)
        self.recorded = device.type == "cuda"
        self.recording = self.logits = None

    def start(self, positions):
        """Prepares for a new prompt. positions: a function (length, device) → positions of the stored tokens."""
        self.cache.used, self.cache.slots = 0, None
        self.positions.copy_(positions(len(self.positions), self.positions.device))
        self.reads.zero_()

    def step(self, mistral, tokens, reads, now, stored):
        width = len(self.slots)
        self.tokens.copy_(tokens)
        self.now.fill_(now)
        torch.arange(stored, stored + width, out=self.slots)
        self.cache.slots = self.slots
        self.reads[:, :, :stored + width] = True if reads is None else reads

        if not self.recorded:
            return self.run(mistral)
        if self.recording is None:
            self.record(mistral)
        self.recording.replay()
        return self.logits

    def run(self, mistral):
        """The recorded part: it must not copy a number from the device, or create a tensor on the host."""
        mask, window = self.reads, mistral.config.sliding_window
        if window is not None:
            mask = mask & (self.positions > self.now[:, None] - window)
        hidden = mistral.hidden(ids=self.tokens, cache=self.cache, positions=self.now, mask=mask)
        return mistral.logits(hidden).float()

    def record(self, mistral):
        """Records a step. CUDA needs a few runs before; they write the step's own values to the step's own places."""
        with torch.cuda.device(self.slots.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.run(mistral)
            torch.cuda.current_stream().wait_stream(stream)
            recording = torch.cuda.CUDAGraph()
            # Other threads may continue, such as one that pins memory for the next pictures.
            with torch.cuda.graph(recording, capture_error_mode="thread_local"):
                self.logits = self.run(mistral)
            self.recording = recording                     # set last, so that no partial recording is replayed


# {model: (addresses of its weights, {shape: Buffers})}; the buffers stay on the device as long as the model exists.
KEPT = weakref.WeakKeyDictionary()


def buffers_for(mistral, *shape):
    """The buffers of a shape; kept ones, with their recording, only if the weights are still at the same addresses."""
    addresses = [mistral.training, *(weight.data_ptr() for weight in mistral.parameters())]
    then, buffers = KEPT.get(mistral, (None, {}))
    if then != addresses or (len(buffers) == RECORDINGS and shape not in buffers):
        buffers = {}
        KEPT[mistral] = addresses, buffers
    if shape not in buffers:
        buffers[shape] = Buffers(mistral, *shape)
    return buffers[shape]
