"""The public TFLite schema (`schema_v3c.fbs`) as far as we read it: field numbers, operations, number formats.

A field's number is its place among the declarations of its table, counted from 0; a union takes two places, its type
and its value. A test compares all of them with LiteRT's own generated reader.
"""

from __future__ import annotations

IDENTIFIER = b"TFL3"

# table -> fields by number
FIELDS = {
    "Model": {
        "version": 0,
        "operator_codes": 1,
        "subgraphs": 2,
        "description": 3,
        "buffers": 4,
        "metadata": 6,
        "signature_defs": 7,
    },
    "OperatorCode": {"deprecated_builtin_code": 0, "custom_code": 1, "version": 2, "builtin_code": 3},
    "SubGraph": {"tensors": 0, "inputs": 1, "outputs": 2, "operators": 3, "name": 4},
    "Tensor": {
        "shape": 0,
        "type": 1,
        "buffer": 2,
        "name": 3,
        "quantization": 4,
        "is_variable": 5,
        "sparsity": 6,
        "shape_signature": 7,
        "external_buffer": 10,
    },
    "QuantizationParameters": {"scale": 2, "zero_point": 3, "quantized_dimension": 6},
    "SparsityParameters": {"traversal_order": 0, "block_map": 1, "dim_metadata": 2},
    "DimensionMetadata": {
        "format": 0,
        "dense_size": 1,
        "array_segments_type": 2,
        "array_segments": 3,
        "array_indices_type": 4,
        "array_indices": 5,
    },
    "Int32Vector": {"values": 0},
    "Uint16Vector": {"values": 0},
    "Uint8Vector": {"values": 0},
    "Operator": {
        "opcode_index": 0,
        "inputs": 1,
        "outputs": 2,
        "builtin_options_type": 3,
        "builtin_options": 4,
    },
    "Buffer": {"data": 0, "offset": 1, "size": 2},
    "SignatureDef": {"inputs": 0, "outputs": 1, "signature_key": 2, "subgraph_index": 4},
    "TensorMap": {"name": 0, "tensor_index": 1},
    "Metadata": {"name": 0, "buffer": 1},
    "Conv2DOptions": {
        "padding": 0,
        "stride_w": 1,
        "stride_h": 2,
        "dilation_w_factor": 4,
        "dilation_h_factor": 5,
    },
    "DepthwiseConv2DOptions": {
        "padding": 0,
        "stride_w": 1,
        "stride_h": 2,
        "depth_multiplier": 3,
        "dilation_w_factor": 5,
        "dilation_h_factor": 6,
    },
}

# Union members by number.
INDEX_VECTORS = {1: ("Int32Vector", "<i4"), 2: ("Uint16Vector", "<u2"), 3: ("Uint8Vector", "<u1")}
CONV_OPTIONS, DEPTHWISE_OPTIONS = 1, 2
OPTIONS = {CONV_OPTIONS: "Conv2DOptions", DEPTHWISE_OPTIONS: "DepthwiseConv2DOptions"}
PADDINGS = ("SAME", "VALID")

# (name, bits of one entry, NumPy type or "" where there is none); strings and handles have no fixed size: 0 bits
TYPES = (
    ("float32", 32, "<f4"),
    ("float16", 16, "<f2"),
    ("int32", 32, "<i4"),
    ("uint8", 8, "<u1"),
    ("int64", 64, "<i8"),
    ("string", 0, ""),
    ("bool", 8, "<u1"),
    ("int16", 16, "<i2"),
    ("complex64", 64, "<c8"),
    ("int8", 8, "<i1"),
    ("float64", 64, "<f8"),
    ("complex128", 128, "<c16"),
    ("uint64", 64, "<u8"),
    ("resource", 0, ""),
    ("variant", 0, ""),
    ("uint32", 32, "<u4"),
    ("uint16", 16, "<u2"),
    ("int4", 4, ""),
    ("bfloat16", 16, "<u2"),
    ("int2", 2, ""),
    ("uint4", 4, ""),
    ("float8_e4m3fn", 8, "<u1"),
    ("float8_e5m2", 8, "<u1"),
)

# One word a line would be 210 lines.
OPERATORS = tuple(
    """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION
    LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH
    CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
    BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
    BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM
    ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE
    TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK
    LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD
    RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N
    GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
    NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
    PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE
    HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE
    ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU
    DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2
    UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE
    STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE
    STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE
    STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM
    STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT STABLEHLO_SELECT
    STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE
    STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW
    STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR
    REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
    """.split()  # noqa: SIM905
)
