"""Single sign-on with any OpenID Connect provider, as FAB's configuration: docs/deployment.md, "People".

AIRFLOW__FAB__CONFIG_FILE   the path of this file
OIDC_ISSUER                 the provider's URL, which serves /.well-known/openid-configuration
OIDC_CLIENT_ID, OIDC_CLIENT_SECRET
OIDC_ROLES                  the role of each group, as JSON: {"analysts": "User", "on-call": "Op"}; others: none
OIDC_GROUPS_CLAIM           the claim that lists a person's groups (groups)
"""

import json
import os
from typing import Any

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from flask_appbuilder.const import AUTH_OAUTH

_ROLES = ("Viewer", "User", "Op", "Admin")


def _roles() -> dict[str, list[str]]:
    found = json.loads(os.environ["OIDC_ROLES"])
    if not isinstance(found, dict) or not found or not set(found.values()) <= set(_ROLES):
        raise ValueError(f"OIDC_ROLES must give each group one of {', '.join(_ROLES)}, as a JSON object.")
    return {str(group): [role] for group, role in found.items()}


class OpenIdSecurityManager(FabAirflowSecurityManagerOverride):
    """People are who the provider says, by their e-mail address."""

    def get_oauth_user_info(self, provider: str, resp: dict[str, Any]) -> dict[str, Any]:
        """Return FAB's view of a person; empty, so nobody, without a verified address.

        Args:
            provider: `oidc`.
            resp: the provider's answer, whose ID token Authlib has verified.
        """
        claims = resp.get("userinfo") or {}
        email = str(claims.get("email") or "").strip().lower()
        # An address that anyone can claim would let them in as somebody else; one without @ as a local user.
        if "@" not in email or claims.get("email_verified") is False:
            return {}
        groups = claims.get(os.environ.get("OIDC_GROUPS_CLAIM") or "groups") or []
        return {
            "username": email,
            "email": email,
            "first_name": str(claims.get("given_name") or ""),
            "last_name": str(claims.get("family_name") or ""),
            "role_keys": [groups] if isinstance(groups, str) else list(groups),
        }


SECURITY_MANAGER_CLASS = OpenIdSecurityManager
AUTH_TYPE = AUTH_OAUTH
AUTH_USER_REGISTRATION = True
AUTH_USER_REGISTRATION_ROLE = "Public"  # may do nothing
AUTH_ROLES_MAPPING = _roles()
AUTH_ROLES_SYNC_AT_LOGIN = True  # so who leaves a group loses its role at the next login
OAUTH_PROVIDERS = [
    {
        "name": "oidc",
        "icon": "fa-key",
        "token_key": "access_token",
        "remote_app": {
            "client_id": os.environ["OIDC_CLIENT_ID"],
            "client_secret": os.environ["OIDC_CLIENT_SECRET"],
            "server_metadata_url": f"{os.environ['OIDC_ISSUER'].rstrip('/')}/.well-known/openid-configuration",
            "client_kwargs": {"scope": "openid email profile", "code_challenge_method": "S256"},
        },
    }
]
