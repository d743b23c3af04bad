from utils.engine import recalibrated, reset_norms  # noqa
