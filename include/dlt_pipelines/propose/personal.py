"""Personal data, recognised by a column's name in the large European languages, or by the form of its values."""

import re
from collections.abc import Sequence

from include.dlt_pipelines.propose.names import snake_case

# Names in snake case, accents folded. Whole words, so that `product_name` or `ip_count` is not one.
_NAMES = re.compile(
    r"(^|_)("
    # names of persons: English, German, French, Spanish, Italian, Portuguese, Dutch, Polish
    r"(first|last|full|middle|sur|given|family|user|maiden|nick)_?name|surname|contact_name|(customer|client)_name"
    r"|(vor|nach|familien|geburts|benutzer)_?name|kunden_?name|ansprechpartner"
    r"|prenoms?|nom_(de_)?famille|nom_complet|nombres?_completo|apellidos?|nombre_(de_)?(cliente|usuario)"
    r"|cognome|nome_(completo|cliente)|sobrenome|apelido|voornaam|achternaam|tussenvoegsel|imie|nazwisko"
    # ways to reach them
    r"|e_?mails?|mail_address|courriel|correo(_electronico)?|phones?(_number)?|mobile(_number|_phone)?|cell_?phone|fax"
    r"|tele(fon|phone|fono|foon|fone)(_?nummer|_?number)?|tel|handy(nummer)?|rufnummer|movil|celular|portable|cellulare"
    r"|address(_?line)?(_?\d)?|street(_address)?|anschrift|adresse|strasse|hausnummer|direccion|domicilio|calle"
    r"|indirizzo|endereco|morada|rua|adres|straat|ulica"
    # what identifies them, or was told in confidence
    r"|birth(_?da(te|y)|_?year)?|dob|date_of_birth|geburts(datum|tag)|geb_?datum|date_(de_)?naissance|naissance"
    r"|fecha_(de_)?nacimiento|nacimiento|data_(di_)?nascita|nascita|data_(de_)?nascimento|nascimento|geboortedatum"
    r"|data_urodzenia|ssn|social_security(_number)?|passport(_no|_number)?|passnummer|reisepass|iban|tax_id|steuer_?id"
    r"|steuernummer|sozialversicherungsnummer|nir|dni|nif|codice_fiscale|cpf|bsn|pesel|ip_address|ip_?addr|salary|gehalt"
    r")(_|$)"
)
# `name` alone, in a table of persons.
_BARE_NAMES = re.compile(r"(name|nom|nombre|nome|naam|nazwa)s?")
_PERSONS = re.compile(
    r"customer|client|user|person|people|employee|contact|member|patient|student|passenger|kund|mitarbeiter|mitglied"
    r"|personne|usager|salari|adherent|cliente|usuario|empleado|persona|utent|dipendent|pracownik|klant"
)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}")
_PHONE = re.compile(r"(\+|00)[1-9][0-9 ()/.\-]{6,18}[0-9]")
_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}")
_SHARE = 0.8  # of the examples must have the form


def is_personal(column: str, table: str, examples: Sequence[str]) -> bool:
    """Return whether a column seems to hold personal data.

    Args:
        column: its name in the file.
        table: the table's name.
        examples: some of its values.
    """
    name = snake_case(column)
    if _NAMES.search(name) or (_BARE_NAMES.fullmatch(name) and _PERSONS.search(table)):
        return True
    found = sum(bool(_EMAIL.fullmatch(one) or _PHONE.fullmatch(one) or _is_iban(one)) for one in examples)
    return bool(examples) and found >= _SHARE * len(examples)


def _is_iban(text: str) -> bool:
    text = text.replace(" ", "").upper()
    if not _IBAN.fullmatch(text):
        return False
    digits = "".join(str(int(character, 36)) for character in text[4:] + text[:4])
    return int(digits) % 97 == 1
