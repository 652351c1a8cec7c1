"""Small data sets of texts on disk, with the names and features of TFDS's real ones."""

import contextlib


def write_tfds(folder, name, texts):
    """Writes the split "train" of NAME or NAME/CONFIG; features beside the text are empty."""
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    builder = tfds.builder(name, data_dir=folder)
    features = builder.info.features
    columns = {key: tf.constant([""] * len(texts)) for key in features} | {"text": texts}
    with contextlib.ExitStack() as stack:
        before = constants.DATA_DIR  # where it makes a folder for downloads
        constants.DATA_DIR = folder
        stack.callback(setattr, constants, "DATA_DIR", before)
        tfds.dataset_builders.store_as_tfds_dataset(
            name=builder.name,
            config=builder.builder_config and builder.builder_config.name,
            version=str(builder.version),
            features=features,
            split_datasets={"train": tf.data.Dataset.from_tensor_slices(columns)},
            data_dir=folder,
        )
