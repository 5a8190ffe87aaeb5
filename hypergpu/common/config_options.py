"""Options of the services that read the configuration tree."""

from collections.abc import Mapping
from dataclasses import dataclass

from hypergpu.common.config import SystemConfig, load_config
from hypergpu.common.log import LogLevel
from hypergpu.common.options import ConfigFile, Format, Insecure, Level, Settings, Token, TokenFile


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Sources of the configuration and the join token, and the log."""

    config: ConfigFile = None
    setting: Settings = None
    token: Token = None
    token_file: TokenFile = None
    insecure: Insecure = False
    log_level: Level = LogLevel.INFO
    log_format: Format = None

    def load(self, options: Mapping[str, object], environment: Mapping[str, str]) -> SystemConfig:
        """Return the configuration: options by dotted key first, then --set, the environment, the file, the defaults.

        Raises:
            ConfigError: a value that is unknown or invalid.
        """
        return load_config(SystemConfig, self.config, environment, self.setting or [], options)
