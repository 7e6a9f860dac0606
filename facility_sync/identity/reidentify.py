"""The standard's way back (PS3.15 annex E.1): the original attributes put over what a file shows.

Opens what any PS3.15 tool wrote, `gdcmanon -e` included. What comes out has all attributes of the original
and not its bytes: File Meta, padding, lengths and order are written anew. Our own files come back bit for
bit by their capsule (`objects.restore`); this is for other tools' files, and for ours when somebody
transcoded the pixels.

Guarantees: a capsule of ours, if there is one, must prove itself first; whatever the bytes, only
`FormatError` or `SealError` come out. Holds the file in memory.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from facility_sync.identity import capsule, cms
from schemas.errors import FormatError, SealError

_ENCRYPTED, _CONTENT = BaseTag(0x04000500), BaseTag(0x04000520)
_METHOD_TAGS = (0x00120062, 0x00120063, 0x00120064, 0x00280303)


def reidentify(
    source: BinaryIO,
    sink: BinaryIO,
    keys: Sequence[cms.Reader],
    domain_keys: Mapping[str, bytes],
    *,
    anyone: bool = False,
) -> None:
    """Write the file with its original attributes.

    Args:
        source: a Part 10 file.
        sink: takes the new one.
        keys: private keys; any may fit.
        domain_keys: capsule keys of the domains here, by the domain's id.
        anyone: believe a capsule of ours whoever signed it, for who holds a private key and no domain.

    Raises:
        FormatError: no readable file with Encrypted Attributes.
        SealError: not for these keys, forged or altered.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's may quote values
        try:
            shown = pydicom.dcmread(source)
            content = bytes(shown[_ENCRYPTED].value[0][_CONTENT].value)
        except Exception as error:  # pydicom raises anything
            raise FormatError("this is no DICOM file with Encrypted Attributes") from error
        plain = cms.unseal(content, keys, capsule.BEGINS)
        item, ours = capsule.split(plain)
        if ours:
            proved = capsule.read(plain, domain_keys=domain_keys, anyone=anyone)
            if proved.instance != str(shown.get("SOPInstanceUID", "")):
                raise SealError("a capsule is of another image than the one it stands in")
        try:
            _merge(shown, _originals(item))
            shown.file_meta.MediaStorageSOPInstanceUID = shown.SOPInstanceUID
            shown.file_meta.MediaStorageSOPClassUID = shown.SOPClassUID
            made = io.BytesIO()
            shown.save_as(made, enforce_file_format=True)
        except Exception as error:  # the same, one step later
            raise FormatError("the original attributes do not fit the file they are in") from error
    sink.write(made.getbuffer())


def _originals(item: bytes) -> Dataset:
    found = read_dataset(io.BytesIO(item), is_implicit_VR=False, is_little_endian=True)
    originals: Dataset = found[BaseTag(capsule.MODIFIED)].value[0]
    return originals


def _merge(shown: Dataset, originals: Dataset) -> None:
    for tag in (_ENCRYPTED, *map(BaseTag, _METHOD_TAGS)):
        if tag in shown:
            del shown[tag]
    charset = originals.get("SpecificCharacterSet")
    if charset is not None:
        shown.SpecificCharacterSet = charset
    for element in originals:  # decoded here, in their own character set and byte order
        shown[element.tag] = element
