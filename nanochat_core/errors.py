"""The tree of errors that people see; each says what was given, what was expected, what to do.

NanochatError
├── ConfigError              a value that cannot work: refused before any work starts
│   ├── BatchSizeError       a batch that does not divide
│   ├── WeakSandboxError     generated code would run where only limits hold it back
│   └── UnknownNameError     no such preset, station, field, dtype, alias
├── DataError                an empty, unreadable or malformed source
├── StoreError
│   ├── StoreUnavailableError    cannot be read or written, or the disk is full
│   ├── ArtifactNotFoundError    nothing published under that reference
│   ├── DamagedFileError         bytes that do not match their recorded sha256
│   ├── StationBusyError         another process makes the same artifact right now
│   └── LeaseLostError           another machine has taken over what this one was making
├── CheckpointError          no usable checkpoint, or one of another model
├── TrainingError            a loss or gradient that is not finite, or far too high for long
├── ExportError              an exported folder that does not do what the model does
└── JobError                 a training or evaluation process that failed
    ├── JobLostError         killed, or died of its machine: worth another try
    │   ├── RanksLostError       a rank waited too long for another one
    │   └── DeviceMemoryError    out of memory; the next try has smaller micro-batches
    └── JobStoppedError      ended on request, with its progress saved
"""


class NanochatError(Exception):
    """Base of every error that is shown to people as one message, without a traceback."""


class ConfigError(NanochatError):
    """A value that cannot work."""


class BatchSizeError(ConfigError):
    """A batch that does not divide into whole micro-batches."""


class WeakSandboxError(ConfigError):
    """Generated code would run where only limits hold it back, and nobody has allowed that."""


class UnknownNameError(ConfigError):
    """A name that stands for nothing; the message lists those that do."""


class DataError(NanochatError):
    """A source of text or conversations that is empty, unreadable or malformed."""


class StoreError(NanochatError):
    """Something wrong with the artifact store."""


class StoreUnavailableError(StoreError):
    """The store cannot be read or written."""


class ArtifactNotFoundError(StoreError):
    """Nothing is published under that reference."""


class DamagedFileError(StoreError):
    """Bytes that do not match their recorded sha256."""


class StationBusyError(StoreError):
    """Another process is making the same artifact right now."""


class LeaseLostError(StoreError):
    """The right to make an artifact was lost to another machine; this one must stop."""


class CheckpointError(NanochatError):
    """No usable checkpoint, or one that belongs to another model."""


class TrainingError(NanochatError):
    """A loss or a gradient that is not finite, or a loss that stays far too high."""


class ExportError(NanochatError):
    """An exported model or tokenizer that does not do what ours does."""


class JobError(NanochatError):
    """A training or evaluation process that failed."""


class JobLostError(JobError):
    """A process that was killed or died of its machine; another try can succeed."""


class RanksLostError(JobLostError):
    """A rank that waited too long for another one, which hangs or is gone."""


class DeviceMemoryError(JobLostError):
    """A micro-batch that did not fit the memory of the device; the next one is smaller."""


class JobStoppedError(JobError):
    """A process that ended on request, with its progress saved."""
